"""The demo as a Hugging Face Space, whose environment says where it listens."""

from hwr_ray.recognition.demo import DemoSettings, demo

demo(DemoSettings(port=0), server_name=None)
