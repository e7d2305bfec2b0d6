"""Working with other packages: their names, their files, and ways around where they do not fit together."""
