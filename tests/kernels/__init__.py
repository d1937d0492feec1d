"""Tables of the kernels: what the goldens record of them, and examples of their use."""
