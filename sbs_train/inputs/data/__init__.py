"""Images and labels: train, validation and test split of a named data set.

interface               the base class of all data sets
memory · builtin cifar  data sets that lie in memory
files · folder shards   data sets that stay in files; urls: where shards lie
samples images          one image, from bytes to pixels; loader: worker processes
"""

from sbs_train.inputs.data.builtin import FASHION_MNIST_DEBIAN
from sbs_train.inputs.data.interface import SPLIT_SEED, Dataset, Split
from sbs_train.inputs.data.load import dataset_of, load_dataset
from sbs_train.inputs.data.memory import MemoryDataset, MemorySplit

__all__ = [
    "FASHION_MNIST_DEBIAN",
    "SPLIT_SEED",
    "Dataset",
    "MemoryDataset",
    "MemorySplit",
    "Split",
    "dataset_of",
    "load_dataset",
]
