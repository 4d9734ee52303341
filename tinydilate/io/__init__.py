"""Reading and writing: files that are whole or not there, checkpoints, images, others' weights.

Weights of others: read recognition and mapped, then a format (wire and caffe; opcodes and pth;
npz), then vgg, weights and conversion.
"""
