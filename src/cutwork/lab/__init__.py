"""Programs that use the whole package, such as the demonstration."""
