"""The command `cutwork doctor`."""


def doctor(*, json: bool = False) -> None:
    """Show versions, devices and which kernels are active, with reasons.

    Args:
        json: Print a JSON object instead of text.
    """
    from cutwork.speed.machine import diagnose

    diagnosis = diagnose()
    print(diagnosis.to_json() if json else diagnosis)
