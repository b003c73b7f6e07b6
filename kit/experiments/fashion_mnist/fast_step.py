"""One step of SGD on `Model`, with the gradient written out.

With batches of four, autograd's and the optimizer's bookkeeping takes as long as the arithmetic.
Written out, a step is some sixty tensor operations on storage that stays where it is. Steps a
second on one CPU thread (720 real images, batches of 4, best of 3 runs of 8 epochs):

    this step                                                         1,822
    loss.backward(), SGD(), tensors made once, oneDNN off             1,236
    loss.backward(), SGD(), DataLoader of such tensors, oneDNN on       894

The first two in turns seven times: 1.6 times as fast in the median. The arithmetic is that of
`training.PlainStep`, up to the order of additions: a test compares the two.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from torch import Tensor

from kit.experiments.fashion_mnist.images import LABELS
from kit.experiments.fashion_mnist.parameters import Parameters

if TYPE_CHECKING:
    from kit.experiments.fashion_mnist.training import Model

# The operators behind max_pool2d, its derivative, and those of conv2d and relu.
_pool = torch.ops.aten.max_pool2d_with_indices.default
_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward.default
_conv_backward = torch.ops.aten.convolution_backward.default
_relu_backward = torch.ops.aten.threshold_backward.default
_TWO, _ONE, _NONE = (2, 2), (1, 1), (0, 0)


class _Layer(NamedTuple):
    """A layer's weight, as a matrix (outputs, inputs), and bias, with their velocities."""

    weight: Tensor
    bias: Tensor
    v_weight: Tensor
    v_bias: Tensor


class FastStep:
    """Momentum SGD for one `Model`, whose parameters it moves into one long vector.

    `velocity` has the names and shapes of the model's parameters: with the weights it is all
    that a checkpoint needs.
    """

    def __init__(self, model: "Model", parameters: Parameters) -> None:
        self._rate, self._momentum = parameters.learning_rate, parameters.momentum
        by_name = dict(model.named_parameters())
        self._weights = torch.cat([p.detach().reshape(-1) for p in by_name.values()])
        self._velocity = torch.zeros_like(self._weights)
        weights = _views(self._weights, by_name)
        self.velocity = _views(self._velocity, by_name)
        for name, parameter in by_name.items():
            parameter.data = weights[name]
        self._layers = [
            _Layer(
                weights[f"{name}.weight"].flatten(1),
                weights[f"{name}.bias"],
                self.velocity[f"{name}.weight"].flatten(1),
                self.velocity[f"{name}.bias"],
            )
            for name in ("conv1", "conv2", "fc1", "fc2", "fc3")
        ]

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take one step on images (N, 1, 28, 28) and labels (N,), under `torch.no_grad()`.

        Returns the loss before the step: the mean cross entropy of the batch.
        """
        self._velocity.mul_(self._momentum)
        loss = self._add_gradient(images, F.one_hot(labels, len(LABELS)).float())
        self._weights.add_(self._velocity, alpha=-self._rate)
        return loss

    def _add_gradient(self, x: Tensor, target: Tensor) -> Tensor:
        """Add the gradient to the velocity; return the loss."""
        conv1, conv2, fc1, fc2, fc3 = self._layers
        n = len(x)
        # Forward. The first convolution is a matrix product with all 5x5 patches of the batch.
        patches = x.as_strided((5, 5, n, 24, 24), (28, 1, 784, 28, 1)).reshape(25, n * 576)
        c1 = _planes(torch.addmm(conv1.bias.unsqueeze(1), conv1.weight, patches), 6 * n, 24)
        h1, where1 = _pool(c1, _TWO, _TWO)
        h1 = h1.relu_().view(6, n, 12, 12).transpose(0, 1).contiguous()
        c2 = _planes(torch.conv2d(h1, conv2.weight.view(16, 6, 5, 5), conv2.bias), 16 * n, 8)
        h2, where2 = _pool(c2, _TWO, _TWO)
        h2 = h2.relu_().reshape(n, 256)
        h3 = torch.addmm(fc1.bias, h2, fc1.weight.t()).relu_()
        h4 = torch.addmm(fc2.bias, h3, fc2.weight.t()).relu_()
        log_p = torch.addmm(fc3.bias, h4, fc3.weight.t()).log_softmax(1)
        loss = torch.dot(log_p.view(-1), target.view(-1)).div_(-n)
        # Backward. d is the derivative of the loss by the result of ever earlier lines.
        d = _linear_backward(fc3, log_p.exp_().sub_(target).div_(n), h4)
        d = _linear_backward(fc2, _relu_backward(d, h4, 0), h3)
        d = _linear_backward(fc1, _relu_backward(d, h3, 0), h2)
        d = _planes(_relu_backward(d, h2, 0), 16 * n, 4)
        d = _pool_backward(d, c2, _TWO, _TWO, _NONE, _ONE, False, where2).reshape(n, 16, 8, 8)
        d = _conv2_backward(conv2, d, h1)
        d = _planes(_relu_backward(d, h1, 0).transpose(0, 1).reshape(1, 6 * n, 12, 12), 6 * n, 12)
        d = _pool_backward(d, c1, _TWO, _TWO, _NONE, _ONE, False, where1).reshape(6, n * 576)
        conv1.v_weight.addmm_(d, patches.t())
        conv1.v_bias.add_(d.sum(1))
        return loss


def _linear_backward(layer: _Layer, d: Tensor, inputs: Tensor) -> Tensor:
    """Add the layer's gradients to its velocities; return the derivative by its inputs."""
    layer.v_weight.addmm_(d.t(), inputs)
    layer.v_bias.add_(d.sum(0))
    return d.mm(layer.weight)


def _conv2_backward(layer: _Layer, d: Tensor, inputs: Tensor) -> Tensor:
    """Do as `_linear_backward` for the second convolution."""
    weight, wanted = layer.weight.view(16, 6, 5, 5), (True, True, True)
    by_inputs, by_weight, by_bias = _conv_backward(
        d, inputs, weight, (16,), _ONE, _NONE, _ONE, False, _NONE, 1, wanted
    )
    layer.v_weight.add_(by_weight.view(16, 150))
    layer.v_bias.add_(by_bias)
    return by_inputs  # type: ignore[no-any-return]


def _views(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut one long vector into tensors of these names and shapes that share its storage."""
    parts = torch.split(vector, [tensor.numel() for tensor in like.values()])
    return {
        name: part.view(tensor.shape)
        for (name, tensor), part in zip(like.items(), parts, strict=True)
    }


def _planes(x: Tensor, count: int, side: int) -> Tensor:
    """Lay out all planes of a batch as the channels of one image, channels last.

    Pooling then works on many planes at once without branches. Plane by plane it branches on
    each pixel, and on real images the processor guesses wrong.
    """
    return x.view(1, count, side, side).contiguous(memory_format=torch.channels_last)
