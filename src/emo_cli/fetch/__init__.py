"""How weights get here: from a hub, from an address, from a package on pip's index."""
