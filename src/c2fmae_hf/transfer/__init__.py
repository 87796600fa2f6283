"""What a pre-trained encoder is used for: probes, classification, segmentation, detection."""
