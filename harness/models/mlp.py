"""A small denoiser for points of the plane, represented as images of one pixel to fit the rest of the harness."""

import torch.nn.functional as F
from torch import Tensor, nn

from harness.models.layers import Latent, check_latent, mapping_network
from harness.models.unet import check_inputs, timestep_embedding, zeroed


class MLP(nn.Module):
    """Predict noise for points: residual fully connected layers, the time embedding added before each.

        h <- h + W_i SiLU(h + emb(t) [+ emb(y)] [+ A style(z)])

    With a latent it generates x_0 as x plus its output, so that a step of little noise starts near its answer. That is
    not bounded: data lie in [-1, 1], but the tails of a distribution need not.

    Args:
        in_channels: coordinates of a point.
        out_channels: in_channels, or twice as many with a learned variance.
        width: of the hidden layers and the time embedding.
        depth: number of hidden layers.
        num_classes: makes the network class-conditional; `y` is then required.
        latent: makes it a generator; `z` is then required.
        input_scale: multiplies x. More than 1 lets details be seen that are small beside the data's range.
    """

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 2,
        width: int = 128,
        depth: int = 3,
        num_classes: int | None = None,
        latent: Latent | None = None,
        input_scale: float = 1.0,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.width = in_channels, out_channels, width
        self.num_classes, self.latent, self.input_scale = num_classes, latent, input_scale
        self.time_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, width)
        if latent is not None:
            self.mapping = mapping_network(latent)
            self.style_emb = nn.Linear(latent.style_dim, width)
        self.inp = nn.Linear(in_channels, width)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        out = nn.Linear(width, out_channels)
        self.out = zeroed(out) if latent is None else out  # a game that starts at 0 on both sides can stay there

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """Run the network.

        Args:
            x: [B, in_channels, 1, 1].
            timesteps: [B], indices, or rescaled to [0, 1000).
            y: [B], classes in [0, num_classes); required by a class-conditional network, refused by another.
            z: [B, latent.dim]; required by a generator, refused by another.

        Returns: [B, out_channels, 1, 1].

        Raises:
            ValueError: a shape does not fit, or y or z is missing or not accepted.
        """
        check_inputs(x, timesteps, y, self.in_channels, self.num_classes)
        check_latent(z, len(x), self.latent)
        if x.shape[2:] != (1, 1):
            raise ValueError(f"x must be points, [B, {self.in_channels}, 1, 1], not {list(x.shape)}")
        dtype = next(self.parameters()).dtype
        emb = self.time_embed(timestep_embedding(timesteps, self.width).to(dtype))  # [B, width]
        if y is not None:
            emb = emb + self.label_emb(y)
        if z is not None:
            emb = emb + self.style_emb(self.mapping(z.to(dtype)))
        h = self.inp(self.input_scale * x.flatten(1).to(dtype))  # [B, width]
        for layer in self.hidden:
            h = h + layer(F.silu(h + emb))  # [B, width]
        output = self.out(F.silu(h))[:, :, None, None]  # [B, out, 1, 1]
        return output if self.latent is None else x + output
