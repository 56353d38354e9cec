"""Models as Hugging Face config.json files: data only; README.md says where each comes from."""
