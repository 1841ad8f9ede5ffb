"Label an image with an exported network: python segment_onnx.py MODEL.onnx IMAGE [MASK.png]; needs no PyTorch"
import json
import sys
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])
about = session.get_modelmeta().custom_metadata_map
names = json.loads(about['classes'])
picture = Image.open(sys.argv[2]).convert('RGB')
image = np.asarray(picture, np.float32).transpose(2, 0, 1)[None]/255     # (1,3,H,W) in [0,1]
outputs = [output.name for output in session.get_outputs()]
found = dict(zip(outputs, session.run(outputs, {'image': image})))
tags = found['tags'][0]                                                  # (C,) in [0,1]
if 'segmentation' in found:
    mask = found['segmentation'][0].argmax(0)                            # (H,W), 0 is the background
else:                                                                    # CAMs of the classes that it sees
    cam = found['cam'][0]*(tags >= .5)[:, None, None]                    # (C,H,W) in [0,1]
    mask = np.where(cam.max(0) > float(about['cam_threshold']), cam.argmax(0) + 1, 0)
for label, name in enumerate(['background', *names]):
    if (mask == label).any(): print(f'{name:<16}{100*(mask == label).mean():5.1f}% of the pixels')
if len(sys.argv) > 3: Image.fromarray(mask.astype(np.uint8)).save(sys.argv[3])
