"""Models by name, each with a way to make inputs."""
