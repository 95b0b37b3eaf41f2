SELECT
    v.id,
    v.created,
    LOWER(HEX(v.patient_code)) AS patient_code,
    v.vaccine,
    v.dose,
    v.batch_id,
    b.batch_number,
    b.manufacturer,
    b.expires,
    v.facility,
    v.given_on,
    v.side,
    v.watched_for,
    v.note
FROM vaccination AS v
JOIN vaccine_batch AS b ON b.id = v.batch_id
WHERE v.created >= %(window_start)s
  AND v.created < %(window_end)s
ORDER BY v.created, v.id
