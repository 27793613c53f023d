"""A real clip through the unmodified VAE and through the swapped one, and what differs between them.

Nothing here is imported by the ops. PyAV, matplotlib and diffusers are needed only where they are used, and
`pip install 'causalvae-kernels[demo]'` brings them.
"""
