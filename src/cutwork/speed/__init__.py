"""Each layer in the form that is fastest on this machine, with the reason."""
