"""Truncated backpropagation: the module keeps the hidden state of the last batch for the next one.

It grows in the middle of an epoch of 12 batches, or is refused at the start.
After pytorch-lightning 655.
"""

from torch import nn
from torch.nn import functional as F

from judge import say
from lightning_ligo import describe
from training import Lit, run, vectors


class Rnn(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.rnn, self.head = nn.GRU(6, width, batch_first=True), nn.Linear(width, 3)

    def forward(self, x, state=None):
        out, state = self.rnn(x, state)
        return self.head(out[:, -1]), state


class Truncated(Lit):
    state = None

    def on_train_epoch_start(self):
        self.state = None

    def training_step(self, batch, batch_idx):
        out, state = self.model(batch[0].reshape(8, 2, 6), self.state)
        self.state = state.detach()
        return F.cross_entropy(out, batch[1])


outcome = run(lambda: Truncated(Rnn()), vectors(inputs=12), describe(Rnn, width=16))
say(outcome.grew or outcome.refused, outcome)
