"""Image and text embedding models: VLM-OOD and DC-CLIP."""
