"""Recognizes a line image with ONNX Runtime, OpenCV and numpy: python examples/read_onnx.py EXPORT IMAGE."""

import itertools
import json
import sys

import cv2
import numpy as np
import onnxruntime

folder, path = sys.argv[1:]
config = json.load(open(f"{folder}/reading.json"))
height, width = config["canvas"]
picture = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
scale = min(1, height / picture.shape[0], width / (config["stretch"] * picture.shape[1]))
if scale < 1:
    picture = cv2.resize(picture, [max(1, round(n * scale)) for n in picture.shape[::-1]], interpolation=cv2.INTER_AREA)
if config["stretch"] != 1:
    size = min(width, round(picture.shape[1] * config["stretch"])), len(picture)
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
canvas = np.full((height, width), np.median(picture), np.uint8)
top = (height - len(picture)) // 2
canvas[top : top + len(picture), : picture.shape[1]] = picture
(log_probs,) = onnxruntime.InferenceSession(f"{folder}/model.onnx").run(None, {"images": canvas[None]})
path_of_classes = [label for label, _ in itertools.groupby(log_probs[0].argmax(-1))]
print("".join(config["charset"][label - 1] for label in path_of_classes if label != config["blank"]))
