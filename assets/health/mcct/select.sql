SELECT
    code,
    issued,
    kind,
    status,
    revoked,
    holder,
    payload,
    signature
FROM certificate
WHERE issued >= %(window_start)s
  AND issued < %(window_end)s
ORDER BY issued, code
