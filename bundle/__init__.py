"""What a bundle is: its manifest, precisions, ports and folder. Needs numpy at most."""
