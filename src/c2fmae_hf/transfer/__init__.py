"""Probes, classification, segmentation and detection with a pre-trained encoder."""
