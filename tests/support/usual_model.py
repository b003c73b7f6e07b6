"""The article's network as it is usually written, to compare with."""

import torch.nn.functional as F
from torch import nn


class AsUsual(nn.Module):
    """The article's network as it is usually written."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(256, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))
        return self.fc3(x)


def bits(model):
    """The bytes of all its parameters, for an exact comparison."""
    return b"".join(p.detach().numpy().tobytes() for p in model.parameters())
