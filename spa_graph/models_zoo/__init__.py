"""Reference networks: small trained ones with their data, and builders of known topologies."""
