"""The harness beside other libraries for diffusion models: `make bench-peers`. README.md says how to read it."""
