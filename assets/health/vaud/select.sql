SELECT
    id,
    at,
    actor,
    action,
    flags,
    subject,
    ip,
    seconds,
    details
FROM audit_trail
