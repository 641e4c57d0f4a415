# The server as an image: docker build --target cpu -t strait:cpu .   (or --target cuda)
FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm AS base
# Compiled code is kept under STRAIT_CACHE: the root may be read-only where /tmp can be written.
ENV STRAIT_CACHE=/tmp/strait HOME=/tmp PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --no-create-home strait
COPY constraints.txt /constraints.txt
COPY --from=wheel /wheels /wheels
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
# Not as CMD, which the words after the image's name would replace; a later --host wins.
ENTRYPOINT ["strait-serve", "--host=0.0.0.0"]

# --build-arg PIP_EXTRA_INDEX_URL=... with PyTorch's index of CPU builds keeps gigabytes of CUDA's libraries out.
FROM base AS cpu
ARG PIP_EXTRA_INDEX_URL=""
RUN pip install --no-cache-dir -c /constraints.txt "$(echo /wheels/*.whl)[grpc]"
USER strait

# The wheels of PyTorch bring CUDA's libraries; the machine needs the driver and the NVIDIA container toolkit.
FROM base AS cuda
RUN pip install --no-cache-dir -c /constraints.txt "$(echo /wheels/*.whl)[grpc]"
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER strait
