"""The demo as a Hugging Face Space, whose environment sets the address and port."""

from hwr_ray.recognition.demo import DemoSettings, demo

demo(DemoSettings(port=0), server_name=None)
