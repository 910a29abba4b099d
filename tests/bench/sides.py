"""The sides of benchmarks of whole networks: functions that run once to the end, of jea and of PyTorch alike."""
from __future__ import annotations

import numpy as np


def jea_inference(model, x: np.ndarray):
    """A function that returns the network's output as an array."""
    from jea._jittor import jt
    inputs = jt.array(x)

    def run():
        with jt.no_grad():
            return model(inputs).numpy()
    return run


def torch_inference(network, x: np.ndarray):
    import torch
    inputs = torch.from_numpy(x)

    def run():
        with torch.inference_mode():
            return network(inputs).numpy()
    return run


def jea_training(model, x: np.ndarray, labels: np.ndarray, **sgd):
    """A function that makes one step of SGD with cross entropy and returns the loss before it."""
    from jea._jittor import jt, nn
    optimizer = jt.optim.SGD([p for p in model.parameters() if not p.is_stop_grad()], **sgd)
    inputs, target = jt.array(x), jt.array(labels)

    def run():
        loss = nn.cross_entropy_loss(model(inputs), target)
        optimizer.step(loss)
        jt.sync_all(True)
        return loss.item()
    return run


def torch_training(network, x: np.ndarray, labels: np.ndarray, **sgd):
    import torch
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], **sgd)
    inputs, target = torch.from_numpy(x), torch.from_numpy(labels).long()

    def run():
        loss = torch.nn.functional.cross_entropy(network(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()
    return run
