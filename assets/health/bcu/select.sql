SELECT
    id,
    batch_number,
    vaccine,
    manufacturer,
    gtin,
    doses,
    received,
    expires,
    price,
    lowest_degree,
    storage,
    withdrawn,
    note
FROM vaccine_batch
ORDER BY id
