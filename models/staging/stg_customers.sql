select
    customer_id,
    customer_name,
    stripe_customer_id
from {{ ref('customers') }}
