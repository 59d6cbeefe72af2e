"""What the tests ask of a network."""


def snapshot(net):
    """Everything that a failed call must leave alone."""
    arrays = net.params | net.state
    host = {name: net.backend.to_numpy(a) for name, a in arrays.items()}
    order = net.rng.bit_generator.state["state"]
    return {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in host.items()}, order, net.backend, net.dtype
