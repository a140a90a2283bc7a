module.exports = async () => {
  const end = performance.now() + 1;
  while (performance.now() < end);
};
