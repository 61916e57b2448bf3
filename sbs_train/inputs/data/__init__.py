"""Images and labels: train, validation and test split of a named data set.

interface               the base class of all data sets
memory · builtin cifar  data sets that lie in memory
files · folder shards   data sets that stay in files; urls: where shards lie
masks                   images with a class for every pixel
samples images          one image, from bytes to pixels; loader: worker processes
"""

from sbs_train.inputs.data.interface import Dataset as Dataset
from sbs_train.inputs.data.interface import Split as Split
from sbs_train.inputs.data.load import dataset_of as dataset_of
from sbs_train.inputs.data.load import load_dataset as load_dataset
from sbs_train.inputs.data.load import masks_of as masks_of
