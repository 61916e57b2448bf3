"""Several targets from one pretrained network: `sbs-train sweep`."""
