"""torch_geometric: graph networks, with the data of its LightningNodeData."""

import pytest

pytest.importorskip("torch_geometric")

import torch
from lightning.pytorch import LightningModule
from projects import check, growing, opened, sizes
from torch.nn import functional as F
from torch_geometric import nn
from torch_geometric.data import Data
from torch_geometric.data.lightning import LightningNodeData

from lightning_ligo import Growth

pytestmark = [pytest.mark.third_party, pytest.mark.filterwarnings("ignore")]


class Nodes(LightningModule):
    """Classifies the nodes of a graph by a network that torch_geometric.nn has."""

    def __init__(self, kind: str, hidden_channels: int = 8, num_layers: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.graph = getattr(nn, kind)(6, hidden_channels, num_layers, out_channels=3)

    def training_step(self, batch, batch_idx):
        logits = self.graph(batch.x, batch.edge_index)[batch.train_mask]
        return F.cross_entropy(logits, batch.y[batch.train_mask])

    def test_step(self, batch, batch_idx):
        self.log(
            "loss", F.cross_entropy(self.graph(batch.x, batch.edge_index), batch.y), batch_size=1
        )

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


@pytest.fixture
def graph() -> LightningNodeData:
    torch.manual_seed(0)
    x, mask = torch.randn(40, 6), torch.ones(40, dtype=torch.bool)
    data = Data(
        x,
        torch.randint(40, (2, 160)),
        y=x[:, :3].argmax(1),
        train_mask=mask,
        val_mask=mask,
        test_mask=mask,
    )
    return LightningNodeData(data, loader="full")


@pytest.mark.parametrize("kind", ["GCN", "GraphSAGE", "GIN", "GAT"])
def test_a_graph_network_grows_in_width_and_depth(tmp_path, graph, kind):
    module = Nodes(kind)
    large = {"hidden_channels": 16, "num_layers": 4}
    run = growing(tmp_path, [Growth(hparams=large, step=3)], epochs=8)
    run.fit(module, datamodule=graph)
    check(run, module, sizes(Nodes(kind, **large)))
    run.test(module, datamodule=graph, ckpt_path="best")
    assert opened(module, run).hparams["num_layers"] == 4
