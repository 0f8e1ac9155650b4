"""A growth that fails leaves the run as it was, which stops or goes on with the small network."""

import copy
import json
import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import lightning_ligo.callbacks.growth
import lightning_ligo.surgery
from lightning_ligo.callbacks import GrowthCallback
from lightning_ligo.callbacks.failing import GrowthFailedError
from lightning_ligo.schedule import Growth
from runs import BATCH, LARGE, MIDDLE, Described, EpochOrder, Plain, items, net, plain, trainer
from runs import SMALL, val_loader
