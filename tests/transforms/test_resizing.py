import torch
from torch import nn

from cutwork.evaluation import call_of
from cutwork.transforms.filling import fill
from cutwork.transforms.growth import find_growth
from cutwork.transforms.resizing import resize
from cutwork.transforms.sizes import trace_sizes


class Talkative(nn.Module):
    """Layers that say their sizes without reading them."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 16)
        self.up, self.down = nn.ConvTranspose1d(16, 24, 3, groups=2), nn.Conv1d(24, 16, 3, groups=2)
        self.batch, self.group = nn.BatchNorm1d(24), nn.GroupNorm(2, 16)
        self.slope = nn.PReLU(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens):
        x = self.embedding(tokens).transpose(1, 2)
        x = self.slope(self.group(self.down(self.batch(self.up(x))))).transpose(1, 2)
        return self.head(self.attention(x, x, x, need_weights=False)[0])


def test_layers_say_the_sizes_that_they_have():
    x = torch.tensor([[1, 2, 3, 4]])
    model = Talkative()
    sizes = trace_sizes(model, call_of(model, (x,)))
    growth = find_growth(sizes, factor=2, multiple=2)
    net = resize(model, sizes, growth, fill(model, sizes, growth, weights="fresh", seed=0))
    assert (net.embedding.num_embeddings, net.embedding.embedding_dim) == (7, 32)
    assert (net.up.in_channels, net.up.out_channels, net.up.groups) == (32, 48, 2)
    assert (net.down.in_channels, net.down.out_channels, net.down.groups) == (48, 32, 2)
    assert (net.batch.num_features, net.group.num_channels, net.slope.num_parameters) == (48, 32, 32)
    assert (net.attention.embed_dim, net.attention.kdim, net.attention.num_heads) == (32, 32, 4)
    assert (net.head.in_features, net.head.out_features) == (32, 5)
    assert net(x).shape == model(x).shape
    assert model.up.in_channels == 16
