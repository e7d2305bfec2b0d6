"""What is computed: operators with a schema, a reference, a fake and gradients; how is the matter of `kernels`."""
