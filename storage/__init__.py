"""Storage keeps every record and every captured byte, and alone touches the database and the blobs."""
