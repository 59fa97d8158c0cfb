"""Types shared by all rooms: Arrow schemas, shards, reasons for unusable rows, column conversions, id hashes."""
