"""The status page, and what it shows: the last seconds of a live server or of a recording."""
