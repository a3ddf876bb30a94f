"""The variational autoencoder, and models saved in folders.

Takes a `Trial` and the shape of the data; returns a `VAE`.
"""
