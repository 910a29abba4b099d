"""The first import of Jittor and its kernels: what is said while its core compiles, and what makes that shorter."""
