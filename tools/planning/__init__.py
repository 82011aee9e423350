"""What a variant would cost on a device, before anything is exported."""
