"""What networks compute on calibration data: features piece by piece, and their second moments."""
