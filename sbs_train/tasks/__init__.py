"""What a job needs to know of a problem: batches, loss and metrics.

protocol         what a user writes, and what a task may offer besides
feed             the batches of one process, in the order that a run repeats
rehearsal        one training step before anything is trained
load             tasks by name
images           what the two below share
classification   one label for each image
segmentation     one class for each pixel
"""
