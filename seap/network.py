"""The old place of `seap.load_networks`, as docs named it up to 0.1."""

from seap.serving.networks.network import load_networks as load_networks
