"""From a trained student to where it runs: a model of stock nnU-Net, or ONNX with its own predictor."""
