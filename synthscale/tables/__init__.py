"""What crosses rooms: Arrow schemas, shards, reasons of faults, columns as arrays, id hashes."""
