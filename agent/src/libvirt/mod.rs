//! The real hypervisor: the only unsafe and blocking code of the agent.
