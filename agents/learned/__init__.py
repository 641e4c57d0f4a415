"""The trained policy: its network, how it is served without torch, its file, and policies by name."""
