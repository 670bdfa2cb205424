"""An algorithm (`filtered_bc`) and an encoder (`fourier`) for offrld."""
