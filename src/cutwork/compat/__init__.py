"""Other packages: names they know, files they wrote, and ways around where they do not fit together."""
